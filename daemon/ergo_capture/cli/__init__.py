"""The command line: ``app`` runs it, ``commands`` holds the commands, ``support`` what several of them share."""
