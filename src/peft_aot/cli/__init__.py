"""The `peft-aot` command: one thin module per verb over functions that know nothing of terminals."""
