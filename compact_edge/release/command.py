"""What `release`, `gather` and `verify --rebuild` do once their words are read."""
