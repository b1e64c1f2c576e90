"""What radiologists say of findings, and how often they agree with the model."""
