"""The world of the facts task: invented people, what the corpus tells of them, and the shipped base policy."""
