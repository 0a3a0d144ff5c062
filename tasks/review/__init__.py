"""Images that a person should look at: which, and what is known of them. No Prefect in here."""
