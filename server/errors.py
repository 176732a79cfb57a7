class UserError(ValueError):
    """Something that the user can mend: the message names the value, the place and what would be right."""
