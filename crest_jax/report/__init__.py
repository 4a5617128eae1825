"""What a run looks like to a person: tables on the terminal, figures."""
