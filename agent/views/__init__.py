"""How what services tell looks: in a terminal, as Markdown, as a page."""
