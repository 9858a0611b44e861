"""Looking at the whole: status, chains of a release, rebuilds. Leaves to others: doing anything (each room)."""
