"""What the flows are made of: one module per thing worked on. Tasks never import flows."""
