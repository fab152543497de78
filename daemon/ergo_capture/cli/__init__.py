"""The command line: ``app`` runs it, ``commands`` holds the commands, ``support`` the code that they share."""
