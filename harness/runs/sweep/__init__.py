"""Many cells: the plan, the processes, the board that shows them."""
