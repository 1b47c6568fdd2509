"""Where JDs are written: this process, a server, a cluster. An engine maps prompts to completions, nothing else."""
