"""What people look at: live display, tables, plots, pictures, dashboard."""
