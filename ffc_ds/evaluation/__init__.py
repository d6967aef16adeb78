"""How good a backbone is: the field's protocols, the files that they come in, figures."""
