"""What people look at: plots, pictures, the HTML report and the terminal's summary."""
