"""What a union costs, in every unit of a budget, and the promise."""
