// What can go wrong in a way that a reader can do something about.

export class QtoolError extends Error {
  /**
   * @param {string} message what happened, with the value that is wrong
   * @param {string} [hint] what to do about it
   */
  constructor(message, hint = "") {
    super(message);
    this.name = "QtoolError";
    this.hint = hint;
  }
}
