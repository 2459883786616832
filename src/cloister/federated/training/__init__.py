"""What a party learns, and from what: the tasks that come with Cloister, their data, models and scores."""
