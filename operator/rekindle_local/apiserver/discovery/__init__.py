"""Which groups, versions and resources there are, as clients ask for them."""
