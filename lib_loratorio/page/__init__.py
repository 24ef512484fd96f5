"""What a user sees: the accordion, the pool's picker, axes of grids, the API's routes, weight panels, documentation."""
