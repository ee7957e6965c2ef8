"""What is known of checked matrix products: fault campaigns, and the profile of a model."""
