"""The stored radiographs of a study, at the resolutions it trains on."""
