"""What a model makes of single sequences: how surprised it is, what it computes, where its loss would pull it."""
