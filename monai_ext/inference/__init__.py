"""What inference.json calls: from a patient's scans to the missing contrast on their own grid."""
