//! A command's failure: a sentence that names the thing, what to do, and the exit code.

use wiglaf_wire::client::Reply;
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

/// Printed once, at the top.
#[derive(Debug)]
pub(crate) struct CommandError {
    code: u8,
    message: String,
    hint: Option<String>,
    connection_lost: bool,
    refused: bool,
}

impl CommandError {
    /// The head has gone away, and may come back.
    pub(crate) fn is_connection_lost(&self) -> bool {
        self.connection_lost
    }

    /// The cluster can't do it.
    pub(crate) fn new(message: impl Into<String>) -> CommandError {
        CommandError {
            code: EXIT_CLUSTER_FAILED,
            message: message.into(),
            hint: None,
            connection_lost: false,
            refused: false,
        }
    }

    /// The head answers, but not to us.
    pub(crate) fn is_refusal(&self) -> bool {
        self.refused
    }

    /// As one of a connection that is over.
    pub(crate) fn lost(mut self) -> CommandError {
        self.connection_lost = true;
        self
    }

    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hint = Some(hint.into());
        self
    }

    /// With another exit code.
    pub(crate) fn code(mut self, code: u8) -> CommandError {
        self.code = code;
        self
    }

    /// A reply that refuses, or one that makes no sense here.
    pub(crate) fn from_reply(reply: Reply) -> CommandError {
        match reply {
            Reply::Refused {
                code,
                message,
                hint,
            } => CommandError {
                code,
                message,
                hint,
                connection_lost: false,
                refused: true,
            },
            other => CommandError::new(format!("the head gave an unexpected answer: {other:?}"))
                .hint("head and command may be of different versions: `wiglaf down; wiglaf up`"),
        }
    }

    /// What is wrong, and what to do.
    pub(crate) fn into_words(self) -> (String, Option<String>) {
        (self.message, self.hint)
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self) -> u8 {
        eprintln!("wiglaf: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("        {hint}");
        }
        self.code
    }
}

impl<E: std::error::Error> From<E> for CommandError {
    fn from(error: E) -> CommandError {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        CommandError::new(message)
    }
}

/// The connection to the head is over.
pub(crate) fn connection_lost(error: &wiglaf_link::LinkError) -> CommandError {
    CommandError::new(format!("the head: {error}"))
        .lost()
        .hint("`wiglaf up` starts it again if it has ended")
}
