"""A study: a question with axes, repeats, controls, comparisons and a primary metric, all declared before anything runs."""
