"""Arms: what is trained on which pairs at which budget, and the workers that train them."""
