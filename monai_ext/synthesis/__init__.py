"""One line from a patient's scans to the contrast that is missing: the command, and the same for Python."""
