"""The model zoo: a bundle packed so that it works alone, and the zoo's rules restated to be asked here."""
