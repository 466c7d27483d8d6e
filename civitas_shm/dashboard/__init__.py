"""The calm screen of `run`: `model` decides what is shown, `view` draws it. Nothing here asks an agent anything."""
