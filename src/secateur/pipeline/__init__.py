"""What to do (recipe), where it goes (store), and the only glue between the parts (stages)."""
