"""A catalogue as a page on which a person sees what is in it and what is wrong."""
