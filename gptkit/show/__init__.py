"""What commands print on stdout: tables for people, JSON for machines, samples as they come."""
