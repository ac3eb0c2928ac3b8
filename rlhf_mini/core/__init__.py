"""What every command needs: options, console, examples, rankings, checkpoints, resuming, bootstrap intervals."""
