"""What tests share: oracles, builders of files and stores, child processes, and the like."""
