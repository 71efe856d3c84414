"""Where a call may go: from the name in it to the plan for it."""
