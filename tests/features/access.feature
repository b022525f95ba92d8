Feature: Reading layers
  A layer is read where it lies, by any number of readers.

  Background:
    Given files of the dimensions D01 and D20
    And everything is loaded

  Scenario: A layer is read without a copy
    When layer L01-02 is read twice
    Then both times it is the same memory
    And nobody can write to it

  Scenario: A layer of a dimension that is not loaded
    When layer L07-00 is read
    Then it is refused because the layer is not there
    And the refusal names L07-00

  Scenario: A layer that the dimension does not have
    When layer L20-99 is read
    Then it is refused because the layer is not there
    And the refusal names L20-99

  Scenario: A path through several dimensions
    When the layers L20-01, L01-00 and L20-01 are read together
    Then they come in that order with their descriptions

  Scenario: Many readers at once
    When 100 readers read every layer
    Then each of them reads what was written

  Scenario: A view outlives its dimension
    Given someone holds a view of L01-01
    When D01 is unloaded
    Then the view is unchanged
    And its memory is still counted
    When the view is dropped
    Then its memory is not counted any more

  Scenario: After closing nothing is read
    When the store is closed
    And layer L01-00 is read
    Then it is refused because the store is closed
