"""Guards that are removed from the code one by one, and the tests that must notice."""
