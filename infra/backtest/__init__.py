"""What a worklist's order would have done to a department: arrivals replayed under several policies.

arrivals ──► simulation, once a policy ──► figures by finding class ──► table, plot
"""
