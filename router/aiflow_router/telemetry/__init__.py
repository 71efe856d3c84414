"""What the router says about itself: metrics and one log line a request."""
