// 8N1 serial receiver and transmitter, DIV clock cycles per bit.
module dp_uart_rx #(parameter int DIV = 25) (
  input  logic clk, rst, rx,
  output logic [7:0] data, output logic valid
);
  localparam int W = $clog2(DIV + 1);
  logic [2:0] line;
  logic busy;
  logic [W-1:0] wait_;
  logic [3:0] bit_;
  always_ff @(posedge clk) begin
    line <= rst ? '1 : {line[1:0], rx};
    valid <= 1'b0;
    if (rst) busy <= 1'b0;
    else if (!busy) begin
      if (!line[2]) begin busy <= 1'b1; wait_ <= W'(DIV/2); bit_ <= '0; end
    end else if (wait_ != 0) wait_ <= wait_ - 1'b1;
    else begin
      wait_ <= W'(DIV-1);
      bit_ <= bit_ + 1'b1;
      if (bit_ == 0) begin if (line[2]) busy <= 1'b0; end      // a glitch, no start bit
      else if (bit_ == 9) begin busy <= 1'b0; valid <= line[2]; end
      else data <= {line[2], data[7:1]};
    end
  end
endmodule

module dp_uart_tx #(parameter int DIV = 25) (
  input  logic clk, rst,
  input  logic [7:0] data, input logic valid, output logic ready,
  output logic tx
);
  localparam int W = $clog2(DIV + 1);
  logic [9:0] shift;
  logic [3:0] left;
  logic [W-1:0] wait_;
  assign ready = left == 0;
  assign tx = shift[0];
  always_ff @(posedge clk) begin
    if (rst) begin left <= '0; shift <= '1; wait_ <= '0; end
    else if (left == 0) begin
      if (valid) begin shift <= {1'b1, data, 1'b0}; left <= 4'd10; wait_ <= W'(DIV-1); end
    end else if (wait_ != 0) wait_ <= wait_ - 1'b1;
    else begin shift <= {1'b1, shift[9:1]}; left <= left - 1'b1; wait_ <= W'(DIV-1); end
  end
endmodule
