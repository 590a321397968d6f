"""What commands print: tables for people, JSON for machines, samples while they are drawn."""
