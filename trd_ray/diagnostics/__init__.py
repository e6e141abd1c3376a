"""What a run's rows say of the signal that it trains on: pure functions from recorded tables to plain numbers."""
