"""Small models as users have them: architectures with random weights."""
