"""The recommender models, one file a family."""
