"""What a RoutePolicy may say, and what becomes of it: pure functions."""
