"""The process `osteon deliver`: sends results to where they go, and notes what became of each object."""
