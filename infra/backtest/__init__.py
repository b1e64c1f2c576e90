"""What another order of the worklist would have meant for a department: arrivals replayed under several policies.

arrivals ──► simulation, once a policy ──► figures by finding class ──► table, plot
"""
