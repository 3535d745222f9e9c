"""How switches learn: losses, λ, learners, schedule."""
