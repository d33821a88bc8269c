"""Incidents: what happened, who pays, whether there is another try, and what it cost."""
