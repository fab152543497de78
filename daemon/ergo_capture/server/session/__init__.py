"""Sessions: admission of events, episodes, parts."""
