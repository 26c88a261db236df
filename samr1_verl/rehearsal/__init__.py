"""`samr1 rehearse`: a recipe with stand-ins for its weights, trained for three steps with verl's own command."""
